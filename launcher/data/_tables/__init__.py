"""Records with columns, from files of rows."""
