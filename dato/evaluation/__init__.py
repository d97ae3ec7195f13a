"""Judge schedules and other methods: make their images, measure quality and time, in one process or many."""
