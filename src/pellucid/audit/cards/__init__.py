"""The cards of the page, a file each; `audit.registry` names them."""
