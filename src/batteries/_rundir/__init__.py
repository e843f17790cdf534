"""The files of a run: their names, schemas, readers and writers."""
