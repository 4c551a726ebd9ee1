"""A small OpenID Connect provider for tests and development: real keys, real signatures, PKCE, and faults on demand."""

from fakes.oidc.server import FakeOidc, Person

__all__ = ["FakeOidc", "Person"]
