--- The specification of an engine, whichever it is.
--
-- `open()` opens an engine that has nothing in it and can `use "busybox"`. Its images and sessions must
-- then behave as said here. What only the embedded engine has is in spec/local_engine_spec.lua.
--
-- What an engine cannot do at all is named in `lacks`; then it has to be refused (refusals.lua), and all the rest
-- still holds:
--   terminals   a process has a terminal
--   snapshots   an instance is committed while it runs
--   removal     images are removed, by hand or by gc
--   imports     directories and archives come in
--   unbounded   output of any size comes through, as slowly as it is read
--   trees       what a process started is killed with it, though it has left its group
--   remains     what descendants write after the end of a process is read
--   flushes     `flush` waits until the command's own pipe has it
--   bytes       names and values in the environment may be any bytes
--   solitude    nothing but init runs beside the command
--   network, limits, cache, exports, links: `network = "host"`, limits but `disk`, `cache = true`, writing images
--   out, links and times in `files`

local parts = { "runs", "streams", "images", "sessions", "tasks", "processes", "pipes", "instances", "refusals" }

--- @param open fun(): bough.engine
--- @param env table the `_ENV` of the calling spec: busted gives `describe` and `it` to that alone
--- @param lacks table<string, true>? what this engine cannot do
return function(open, env, lacks)
  for _, part in ipairs(parts) do
    local path = assert(package.searchpath("spec.engine." .. part, package.path))
    assert(loadfile(path, "t", env))()(open, lacks or {})
  end
end
