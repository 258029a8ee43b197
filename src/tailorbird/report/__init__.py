"""What a run tells: the record, the closing table, the picture, the page and the progress bars."""
