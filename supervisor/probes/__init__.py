"""eBPF probes: what they share with the kernel, how they are loaded, how their records are read."""
