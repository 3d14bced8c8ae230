"""One verb a file: parse, call one function, print."""
