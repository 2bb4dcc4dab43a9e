"""People compare two answers blind, on a local web page: items, the database, the server, pages, exports."""
