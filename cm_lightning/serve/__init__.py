"""A live page: pictures in the browser while the user moves a slider or the pen."""
