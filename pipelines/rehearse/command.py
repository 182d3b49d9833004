"""The `omniavatar` command in a rehearsal: its own entry point, and at the end the peak of GPU memory in a file."""

import atexit

from pipelines.cli.start import main
from pipelines.rehearse.measure import write_device_peak

if __name__ == "__main__":
    atexit.register(write_device_peak)
    main()
