"""LogTriage: find the service, the cause and the minute of an incident in logs."""
