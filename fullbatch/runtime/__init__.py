"""The machine: device and precision, files that survive a crash, and what appears on the terminal."""
