"""Notices to owners and operators: preferences, e-mails, alerts, and the notices that were given up."""
