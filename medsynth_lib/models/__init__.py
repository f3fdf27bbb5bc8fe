"""Networks only: no files, no devices, no loops."""
