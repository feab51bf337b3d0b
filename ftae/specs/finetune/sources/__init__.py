"""The specs of the sources of data, one class for each."""
