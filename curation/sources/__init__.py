"""Which videos go in: folders, lists of addresses, AVSpeech, HDTF."""
