--- `bough serve` in a process of its own, with a store of its own.

local arena = require "spec.support.arena"
local bough = require "bough"
local daemon = require "spec.support.daemon"
local scratch = require "spec.support.scratch"

local serve_process = {}
serve_process.__index = serve_process

serve_process.TOKEN = "a-token-for-the-tests"

local running = {}

-- Where `make` has put what it built.
local BUILD = assert(package.searchpath("bough.core", package.cpath)):match "^(.*)/bough/core%.so$"

--- Starts one. Its store has "busybox" in it.
--- @param args string? more of the command line
function serve_process.start(args)
  local home = scratch.store()
  local command = ("env BOUGH_BUILD=%s %s bin/bough serve --home %s --port 0 --image busybox --token %s --log %s %s")
    :format(scratch.quote(BUILD), arena.lua(), scratch.quote(home), serve_process.TOKEN,
      scratch.quote(os.getenv "BOUGH_SERVE_LOG" or "none"), args or "")
  local self = setmetatable({ daemon = daemon.start(command, "bough serves"), home = home }, serve_process)
  self.url = assert(self.daemon.line:match "(https?://%S+)$", self.daemon.line)
  running[self] = true
  return self
end

--- An engine on it.
--- @param opts table? of bough.open
function serve_process:open(opts)
  local all = { token = serve_process.TOKEN }
  for name, value in pairs(opts or {}) do all[name] = value end
  return bough.open(self.url, all)
end

function serve_process:stop()
  running[self] = nil
  self.daemon:stop()
end

--- Stops all that are left.
function serve_process.stop_all()
  for self in pairs(running) do self:stop() end
end

return serve_process
