"""Import this module to import all modules of the package and its libraries."""

from support.processes import import_everything

import_everything()
