"""Video and audio files: open untrusted media, index, decode, write (PyAV; decord as a second reader)."""
