"""Search schedules: spaces, NSGA-II, planner, adviser, journal, and one function for each kind of search."""
