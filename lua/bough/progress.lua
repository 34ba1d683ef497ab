--- Telling how far long work is.

local core = require "bough.core"

local M = {}

---@class bough.progress_event
---@field op string "upload", "download", "import", ...
---@field item string? which of several
---@field done integer
---@field total integer 0 while it is not known
---@field unit string "bytes" unless it says otherwise
---@field finished boolean? the last event of this work
---@field failed boolean? with `finished`: it came to nothing

local INTERVAL = 0.1 -- seconds between looks

--- Waits for a job and tells of its progress meanwhile. Closes the job, which cancels it, on every way out
--- but the good one; an error of `on_progress` is raised. Waits.
---@param job bough.job
---@param on_progress fun(event: bough.progress_event)?
---@param event table? op, item and unit of the events
---@return any result the job's
function M.follow(job, on_progress, event)
  local over = false
  local _ <close> = setmetatable({}, { __close = function()
    if over then return end
    job:close()
    pcall(job.wait, job) -- when it has ended nothing of it comes in behind us
  end })
  if not on_progress then
    local result = job:wait()
    over = true
    return result
  end
  local last_done, last_total

  local function tell(done, total, extra)
    local told = { unit = "bytes", done = done, total = total }
    for name, value in pairs(event or {}) do told[name] = value end
    for name, value in pairs(extra or {}) do told[name] = value end
    on_progress(told)
  end

  while true do
    local good, result = pcall(job.wait, job, INTERVAL)
    if not good then
      local done, total = job:progress()
      pcall(tell, done, total, { finished = true, failed = true })
      error(result, 0)
    end
    local done, total = job:progress()
    if result ~= nil then
      if total < done then total = done end
      over = true
      tell(total, total, { finished = true })
      return result
    end
    if done ~= last_done or total ~= last_total then
      last_done, last_total = done, total
      tell(done, total)
    end
  end
end

local units = { "bytes", "KiB", "MiB", "GiB", "TiB" }

--- A number of bytes for people: "812 bytes", "1.4 MiB".
---@param bytes integer
---@return string
function M.size(bytes)
  local step = 1
  while bytes >= 1024 and step < #units do
    bytes, step = bytes / 1024, step + 1
  end
  if step == 1 then return bytes == 1 and "1 byte" or ("%d bytes"):format(bytes) end
  return ("%.1f %s"):format(bytes, units[step])
end

local function amount(event, count)
  return event.unit == "bytes" and M.size(count) or ("%d %s"):format(count, event.unit or "")
end

-- One line of at most 79 columns.
local function line_of(label, event)
  local item = event.item and tostring(event.item):gsub("%c", "?") or nil
  local title = label or event.op or ""
  if item then title = title .. " " .. item end
  if #title > 30 then title = title:sub(1, 27):gsub("[\xC0-\xFF][\x80-\xBF]*$", "") .. "..." end
  if event.total <= 0 then return ("%-30s %s"):format(title, amount(event, event.done)) end
  local share = math.min(event.done / event.total, 1)
  local filled = math.floor(share * 20)
  return ("%-30s [%s%s] %3d%% %s"):format(title, ("#"):rep(filled), (" "):rep(20 - filled),
    math.floor(share * 100), amount(event, event.total))
end

--- An `on_progress` that draws a bar on stderr, and removes it at the end; one that does nothing where
--- stderr is no terminal.
---@param label string? in place of the operation's name
---@param to { write: fun(...), flush: fun(...) }? in place of stderr, and a terminal whatever it is
---@return fun(event: bough.progress_event)
function M.bar(label, to)
  if not to then
    if not (core.is_terminal and core.is_terminal(2)) then return function() end end
    to = io.stderr
  end
  local shown
  return function(event)
    local line = not event.finished and line_of(label, event) or ""
    if line == shown or (line == "" and not shown) then return end
    shown = line ~= "" and line or nil
    to:write("\r", line, "\27[K")
    to:flush()
  end
end

return M
