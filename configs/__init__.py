"""Configs: plain data, one file per paper."""
