"""The ledger: what a training costs, what an owner has, and every movement of it. Integers, plain SQL."""
