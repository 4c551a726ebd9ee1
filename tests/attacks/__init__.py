"""One owner, or a host that an owner names, tries to occupy what all need: real processes, servers of our own.

One measure for all: another owner's honest training and page take at most twice their normal time during the attack,
and everything is normal within a minute after it.
"""
