"""The formats that can be read and written, one file each."""
