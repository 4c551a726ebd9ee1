"""Real servers for tests, each private: a free loopback port, a folder of its own, nothing left behind."""
