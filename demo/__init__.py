"""`make demo`: the whole path on one machine, told as a story whose every claim is checked while it is told."""
