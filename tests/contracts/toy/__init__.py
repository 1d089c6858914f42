"""A module as somebody else would write it: `tests/modules_e2e` installs it as a package beside ours."""
