--- The specification of an engine, whichever it is.
--
-- `open()` opens an engine that has nothing in it and can `use "busybox"`. Its images and sessions must
-- then behave as said here. What only the embedded engine has is in spec/local_engine_spec.lua.

local parts = { "runs", "streams", "images", "sessions", "tasks", "processes", "pipes", "instances" }

--- @param open fun(): bough.engine
--- @param env table the `_ENV` of the calling spec: busted gives `describe` and `it` to that alone
return function(open, env)
  for _, part in ipairs(parts) do
    local path = assert(package.searchpath("spec.engine." .. part, package.path))
    assert(loadfile(path, "t", env))()(open)
  end
end
