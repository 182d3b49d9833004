"""The `omniavatar` command of a rehearsal: the same entry point, and at its end the peak of its GPU memory in a file."""

import atexit

from pipelines.cli.start import main
from pipelines.rehearse.measure import write_device_peak

if __name__ == "__main__":
    atexit.register(write_device_peak)
    main()
