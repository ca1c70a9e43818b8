"""Ways to run a kernel of kernels/*.cu: each has `xp`, `launch`, `kernels` and `signature`."""
