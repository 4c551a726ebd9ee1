"""`make bench-fair`: owners with few jobs beside one with hundreds, on simulated workers and a real PostgreSQL.

`workers` has the steps of jobs, in this process or in one that is killed; `simulation` counts the time in ticks;
`kills` says what is killed when; `checks` looks at the database afterwards.
"""
