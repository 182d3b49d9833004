"""From source videos to kept clips: probe, shots, faces, speech, sync, quality, captions, duplicates, choice."""
