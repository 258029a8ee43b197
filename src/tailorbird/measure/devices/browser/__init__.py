"""A browser as a device: what opens a page served from here runs the files."""
