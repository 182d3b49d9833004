"""Starting ranks on this machine or on Ray; hang detection."""
