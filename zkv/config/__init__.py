"""Settings: read from a file, the environment and flags, and checked as a whole.

`zkv.config.schema` has the settings that there are, `zkv.config.layers` the sources.
"""

from zkv.config.layers import (
    Layer,
    MergedSettings,
    build,
    changes,
    from_environment,
    from_file,
    merge,
    override,
    with_live,
)
from zkv.config.memory import fit_memory
from zkv.config.schema import (
    ARRAYS,
    SETTINGS,
    CacheSettings,
    DurabilitySettings,
    EtcdSettings,
    LimitSettings,
    LogSettings,
    ReplicationSettings,
    SecuritySettings,
    ServerSettings,
    Setting,
    Settings,
    StoreSettings,
    unadvertised,
    value_of,
)
from zkv.config.toml import toml_file, toml_value

__all__ = [
    "ARRAYS",
    "SETTINGS",
    "CacheSettings",
    "DurabilitySettings",
    "EtcdSettings",
    "Layer",
    "LimitSettings",
    "LogSettings",
    "MergedSettings",
    "ReplicationSettings",
    "SecuritySettings",
    "ServerSettings",
    "Setting",
    "Settings",
    "StoreSettings",
    "build",
    "changes",
    "fit_memory",
    "from_environment",
    "from_file",
    "merge",
    "override",
    "toml_file",
    "toml_value",
    "unadvertised",
    "value_of",
    "with_live",
]
