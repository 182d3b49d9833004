"""Stages and where they run: this process, a process pool or Ray, with retries and quarantine."""
