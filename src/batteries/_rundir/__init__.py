"""The files of a run: what each is called, may hold, and how it is read and written."""
