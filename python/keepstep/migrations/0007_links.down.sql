-- Drops the links that are under way: whoever is linking a device begins anew.

DROP TABLE link_messages;
DROP TABLE links;
