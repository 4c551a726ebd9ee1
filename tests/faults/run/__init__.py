"""`make faults`: many small trainings by real processes, while everything around them is killed, paused and lied to.

`plan` says what will happen, from a seed alone; `world` is the installation and what can go wrong in it; `owners` ask
for trainings, cancel them and send messages twice; `verdict` says what became of every accepted training.
"""
