"""Resumable chunks of work, threads, memory: how the machine is used."""
