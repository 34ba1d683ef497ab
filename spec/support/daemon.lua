--- Helper processes of tests: servers that say on which port they listen and that never outlive us.

local scratch = require "spec.support.scratch"

local quote = scratch.quote

local daemon = {}
daemon.__index = daemon

-- What it reads from is our lifeline: when a line comes, by `stop`, or the end, because we died, the command
-- is killed. (The end alone would not do: daemons started later have the lifelines of the earlier ones open.)
-- What the command prints is read to the end, or it would stand still when the pipe is full.
local SCRIPT = [[
log=%s; pattern=%s
mkfifo "$log" || exit 1
{
  last=
  while read -r line; do
    last=$line
    case $line in *"$pattern"*) echo "$line"; break;; esac
  done
  case $last in *"$pattern"*) ;; *) echo "! $last";; esac
  exec cat >/dev/null
} <"$log" &
%s >"$log" 2>&1 </dev/null &
pid=$!
exec >/dev/null
read -r _
kill -9 $pid 2>/dev/null
wait
]]

--- Starts a command and waits until it prints a line with `pattern` (plain text) in it.
--- @param command string for a shell; it must not go into the background
--- @param pattern string
--- @return table daemon with the field `line`
function daemon.start(command, pattern)
  local dir = scratch.dir "daemon"
  local lifeline = dir .. "/lifeline"
  local script = scratch.file(SCRIPT:format(quote(dir .. "/log"), quote(pattern), command), dir .. "/script")
  scratch.sh("mkfifo " .. quote(lifeline))
  local output = assert(io.popen(("exec sh %s <%s"):format(quote(script), quote(lifeline)), "r"))
  local self = setmetatable({ output = output, lifeline = assert(io.open(lifeline, "w")) }, daemon)
  self.line = output:read "l" or "! (nothing)"
  if self.line:find "^!" then
    self:stop()
    error(("%s did not start: %s"):format(command, self.line), 2)
  end
  return self
end

--- The last number in the line it printed: its port.
function daemon:port() return assert(math.tointeger(tonumber(self.line:match ".*:(%d+)")), self.line) end

--- Kills it, and waits until it is gone.
function daemon:stop()
  if not self.output then return end
  self.lifeline:write "stop\n"
  self.lifeline:close()
  self.output:close()
  self.output = nil
end

return daemon
