--- A real terminal to type into and to look at: a pane of a tmux of its own.

local fixture = require "spec.engine.fixture"
local scratch = require "spec.support.scratch"

local quote = scratch.quote

local screen = {}
screen.__index = screen

-- A sanitizer's runtime is for our interpreter alone.
local preload = os.getenv "LD_PRELOAD"

--- Opens one with a shell in it, whose prompt is "shell> ". Close it: it is a process.
--- @param cols integer?
--- @param rows integer?
function screen.open(cols, rows)
  local dir = scratch.dir "screen"
  local self = setmetatable({ dir = dir }, screen)
  self.command = "env -u LD_PRELOAD -u TMUX SHELL=/bin/sh tmux -f /dev/null -S " .. quote(dir .. "/socket") .. " "
  local rc = scratch.file("PS1='shell> '\n", dir .. "/rc")
  scratch.sh(("ENV=%s TERM=screen %s new-session -d -x %d -y %d sh")
    :format(quote(rc), self.command, cols or 100, rows or 30))
  self.server = tonumber(self:tmux "display-message -p '#{pid}'")
  local ok, why = pcall(function()
    self.tty = self:tmux "display-message -p '#{pane_tty}'":match "%S+"
    self:sees "shell>"
    self.settings_before = self:settings()
  end)
  if not ok then
    self:close()
    error(why, 0)
  end
  return self
end

--- Runs a command of tmux, and returns what it prints.
function screen:tmux(line)
  return scratch.sh(self.command .. line)
end

--- Types text, and then keys by their names: type("exit", "Enter").
--- @param text string
--- @param ... string as tmux calls them: "Enter", "C-c", "Space"
function screen:type(text, ...)
  if text ~= "" then
    self:tmux("send-keys -l -- " .. quote(text))
  end
  for _, key in ipairs { ... } do
    self:tmux("send-keys " .. quote(key))
  end
end

--- What is to be seen now.
function screen:text()
  return self:tmux "capture-pane -p"
end

--- Waits until that is to be seen.
--- @param text string plain
--- @param times integer? so often at least
function screen:sees(text, times)
  local seen = ""
  local ok, why = pcall(fixture.until_true, ("%q on the screen"):format(text), function()
    seen = self:text()
    local from, count = 1, 0
    while true do
      local _, last = seen:find(text, from, true)
      if not last then return count >= (times or 1) end
      from, count = last + 1, count + 1
    end
  end)
  if not ok then error(("%s; it shows:\n%s"):format(why, (seen:gsub("\n+$", "\n"))), 2) end
end

function screen:resize(cols, rows)
  self:tmux(("resize-window -x %d -y %d"):format(cols, rows))
end

--- The settings of the terminal, as one word.
function screen:settings()
  return scratch.sh("stty -g -F " .. quote(self.tty))
end

--- Waits until they are as they were in the beginning.
function screen:restored()
  local ok = pcall(fixture.until_true, "the settings", function()
    return self:settings() == self.settings_before
  end)
  if not ok then
    error(("the terminal's settings are not as before: %s and now %s; it shows:\n%s")
      :format(self.settings_before, self:settings(), self:text()), 2)
  end
end

--- Whether a terminal hands over each key as it is typed.
--- @param tty string path
function screen.is_raw(tty)
  return scratch.sh("stty -a -F " .. quote(tty)):find("-icanon", 1, true) ~= nil
end

--- Waits until the terminal is raw: the process has it.
function screen:handed_over()
  fixture.until_true("the terminal to be raw", function() return screen.is_raw(self.tty) end)
end

--- Waits until it is not.
function screen:cooked()
  fixture.until_true("the terminal to take lines", function() return not screen.is_raw(self.tty) end)
end

--- Runs a Lua script in the pane's shell, which says "[done CODE]" after it.
--- @param script string
--- @param ... string arguments; `arg[0]` names the script, to find the process by
--- @return string path of the script
function screen:run(script, ...)
  return self:start("%s; echo [done $?]", script, ...)
end

--- The same with a shell line of one's own around it.
--- @param line string "%s" is the command
function screen:start(line, script, ...)
  local command = fixture.lua_command(script, ...)
  local path = command:match "'[^']*' (%S+)"
  if preload then
    command = "LD_PRELOAD=" .. quote(preload) .. " " .. command
  end
  scratch.file((line:gsub("%%s", function() return command end)) .. "\n", self.dir .. "/go")
  self:type(". " .. quote(self.dir .. "/go"), "Enter")
  return path
end

--- The process that runs the script at `path`.
function screen.pid_of(path)
  return fixture.until_true("the process of " .. path, function()
    return fixture.processes(path)[1]
  end)
end

function screen:close()
  pcall(self.tmux, self, "kill-server")
  fixture.until_true("the end of tmux", function() return not fixture.alive(self.server) end)
end
screen.__close = screen.close

return screen
