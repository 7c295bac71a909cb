"""The device and the process: transfers, threads, the allocator."""
