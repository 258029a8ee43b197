"""What times artifacts: one file per kind of device."""
