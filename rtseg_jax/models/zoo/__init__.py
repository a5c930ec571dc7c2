"""Networks of others, a file each: trunk and head together."""
