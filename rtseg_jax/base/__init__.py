"""What everything stands on: configs, devices, files, threads."""
