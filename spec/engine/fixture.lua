--- What the specifications of engines share.

local bough = require "bough"
local lfs = require "lfs"
local scratch = require "spec.support.scratch"
local system = require "system"

local fixture = {}

-- For what may take its time on a busy machine but must come.
local PATIENCE = 20

--- Runs the loop until `condition` holds; raises when it does not come to pass.
--- @param what string for the message
--- @param condition fun(): any
function fixture.until_true(what, condition)
  local give_up = system.monotime() + PATIENCE
  local value = condition()
  while not value do
    if system.monotime() > give_up then
      error("waited in vain for " .. what, 2)
    end
    bough.sleep(0.005)
    value = condition()
  end
  return value
end

local function read_file(path)
  local file = io.open(path, "rb")
  local text = file and file:read "a"
  if file then
    file:close()
  end
  return text
end
fixture.read_file = read_file

--- The processes of this machine whose command line contains `text`: an array of pids. Arguments are
--- separated by single blanks.
function fixture.processes(text)
  local found = {}
  for name in lfs.dir "/proc" do
    local line = name:find "^%d+$" and read_file("/proc/" .. name .. "/cmdline")
    if line and line:gsub("%z", " "):find(text, 1, true) then
      found[#found + 1] = math.tointeger(name)
    end
  end
  return found
end

--- Whether there is such a process, and it is not over and merely waits to be reaped.
function fixture.alive(pid)
  local stat = read_file(("/proc/%d/stat"):format(pid))
  return stat ~= nil and stat:match "%) (%a)" ~= "Z"
end

local marks = 0

--- A number of seconds, as text, that no other `sleep` on this machine sleeps: to find it by.
function fixture.long_time()
  marks = marks + 1
  return ("86%03d.%d"):format(marks, math.random(1000000, 9999999))
end

--- Waits until no process has `text` in its command line.
function fixture.gone(text)
  fixture.until_true("the end of " .. text, function()
    return #fixture.processes(text) == 0
  end)
end

--- A sink that collects lines, and whose `seen(text)` waits until a line says that.
function fixture.listener()
  local lines = {}
  local listener = { lines = lines }
  function listener.sink(line)
    lines[#lines + 1] = line
  end
  function listener.seen(text)
    fixture.until_true("the line " .. text, function()
      for _, line in ipairs(lines) do
        if line == text then
          return true
        end
      end
    end)
  end
  return listener
end

--- Each line of a text, in an array.
function fixture.lines(text)
  local lines = {}
  for line in text:gmatch "[^\n]+" do
    lines[#lines + 1] = line
  end
  return lines
end

--- The names in a directory of an image.
function fixture.names(image, path)
  local names = {}
  for i, entry in ipairs(image:ls(path)) do
    names[i] = entry.name
  end
  return names
end

local interpreter = lfs.symlinkattributes("/proc/self/exe", "target")

--- A shell command that runs a Lua script in a process of its own, with this one's paths.
--- @param script string
--- @param ... string arguments
function fixture.lua_command(script, ...)
  local words = { scratch.quote(interpreter), scratch.file(script) }
  for _, argument in ipairs { ... } do
    words[#words + 1] = scratch.quote(argument)
  end
  return table.concat(words, " ")
end

--- Runs a Lua script in a process of its own and returns what it printed.
function fixture.run_lua(script, ...)
  return scratch.sh("timeout -k 5 120 " .. fixture.lua_command(script, ...))
end

--- The resident memory of this process in bytes.
function fixture.resident()
  return tonumber(read_file "/proc/self/status":match "VmRSS:%s*(%d+)") * 1024
end

return fixture
