"""Tests on a real machine with control groups v2 and systemd, in a virtual machine."""
