"""Use the machine: resumable work, threads, memory, atomic files."""
