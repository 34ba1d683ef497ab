--- Searching the files of an image on a ConTree service: from bough-look's arguments to a request, and from its answer
--- to records.
--
-- The service searches; what it might understand otherwise is done here. A glob with a "/" in it counts from the
-- start here, and nobody says from where there.

local errors = require "bough.error"
local globs = require "bough.contree.globs"
local tree = require "bough.contree.tree"
local wire = require "bough.contree.wire"

local M = {}

local raise, quote = errors.raise, errors.quote

local LONGEST_LINE = 65536
local SILENCE = 300 -- seconds in which the service searches and says nothing

---@class bough.contree.grep what is searched for
---@field patterns string[]
---@field fixed boolean?
---@field ignore_case boolean?
---@field paths string[]
---@field globs string[]
---@field before integer?
---@field after integer?
---@field max_count integer?
---@field max_total integer?

-- Plain text as a regular expression.
local function escaped(text) return (text:gsub("[\\.+*?()|%[%]{}^$#&~-]", "\\%0")) end

-- A glob of a name means the same to everybody.
local function is_name(glob) return not glob:gsub("(.)/$", "%1"):find("/", 1, true) end

local function patterns_of(wanted)
  local patterns = {}
  for i, pattern in ipairs(wanted.patterns) do
    if not utf8.len(pattern) then
      raise("unsupported", "grep", "the pattern %s is not UTF-8, and the service searches for text", quote(pattern))
    end
    patterns[i] = wanted.fixed and escaped(pattern) or pattern
  end
  return patterns
end

-- The globs that the service gets: names to drop, and names to keep where nothing else is kept. With the rest it gives
-- more than is wanted, and its limit would count the wrong lines.
local function globs_of(wanted)
  local sent, complete = {}, true
  for _, glob in ipairs(wanted.globs) do
    if not is_name(glob) then complete = false end
  end
  for _, glob in ipairs(wanted.globs) do
    if is_name(glob) and (complete or glob:sub(1, 1) == "!") then sent[#sent + 1] = glob end
  end
  return sent, complete
end

local function ask(driver, uuid, wanted, paths)
  local sent, complete = globs_of(wanted)
  local at = paths[1] ~= "/" and paths or paths[2] and paths or nil -- the root needs no word
  return driver.api:call({
    op = "grep", path = ("/inspect/%s/grep"):format(wire.escape(uuid)), stall_timeout = SILENCE,
    query = {
      { "pattern", patterns_of(wanted) }, { "path", at }, { "glob", sent[1] and sent },
      { "max_count", complete and wanted.max_count }, { "max_total", complete and wanted.max_total },
      { "case", wanted.ignore_case and "insensitive" or nil }, { "before", wanted.before }, { "after", wanted.after },
    },
  }).json
end

-- Asks again with paths without links, where the service does not take them as they are. What it finds then is told
-- under the names that were given.
local function search(driver, uuid, wanted)
  local paths = {}
  for i, path in ipairs(wanted.paths) do paths[i] = tree.clean(path) end
  local good, answer = pcall(ask, driver, uuid, wanted, paths)
  if good then return answer, {} end
  if not errors.is(answer) or (answer.status ~= 404 and answer.status ~= 422) then error(answer, 0) end
  local given, changed = {}, false
  for i, path in ipairs(paths) do
    local real = tree.locate(driver, uuid, path)
    if real ~= path then given[real], paths[i], changed = path, real, true end
  end
  if not changed then error(answer, 0) end
  return ask(driver, uuid, wanted, paths), given
end

-- Records --------------------------------------------------------------------------------------------

local function whole(value) return math.tointeger(value) end

local function spans_of(match, size)
  local spans = {}
  for _, part in ipairs(type(match.submatches) == "table" and match.submatches or {}) do
    local first, last = whole(part.start), whole(part["end"])
    if first and last and first >= 0 and first < last and first < size then
      spans[#spans + 1] = { first + 1, math.min(last, size) }
    end
  end
  return spans
end

local function record_of(match)
  local path, text = match.path, match.line_text
  local is_match = match.type == "match"
  if type(path) ~= "string" or type(text) ~= "string" or not whole(match.line_number)
    or not (is_match or match.type == "context") then
    raise("protocol", "grep", "the service found what is no line of a file")
  end
  local is_ended = text:sub(-1) == "\n"
  local line = is_ended and text:sub(1, -2) or text
  local record = {
    type = match.type, path = tree.clean(path), line_number = whole(match.line_number),
    line = line:sub(1, LONGEST_LINE),
    offset = whole(match.absolute_offset) or 0,
    length = math.max((whole(match.line_bytes) or #text) - (is_ended and 1 or 0), #line),
    unended = not is_ended or nil,
  }
  record.submatches = is_match and spans_of(match, #record.line) or {}
  return record
end

-- The start that a path is below, the first of several, and the rest.
local function start_of(path, starts)
  for i, start in ipairs(starts) do
    if path == start then return i, "" end
    local prefix = start == "/" and "/" or start .. "/"
    if path:sub(1, #prefix) == prefix then return i, path:sub(#prefix + 1) end
  end
  return #starts + 1, path:sub(2)
end

-- By start, then as a walk goes, then by line.
local function sort(records, starts)
  local keys = {}
  for i, record in ipairs(records) do
    local start = start_of(record.path, starts)
    keys[record] = ("%08d\0%s\0\0%016d%08d"):format(start, record.path:gsub("/", "\0"), record.line_number, i)
  end
  table.sort(records, function(a, b) return keys[a] < keys[b] end)
end

-- What the service has not left out.
local function sift(records, wanted, starts)
  local _, complete = globs_of(wanted)
  if complete then return records, false end
  local filter, kept = globs.new(wanted.globs), {}
  local counts, total, is_cut = {}, 0, false
  for _, record in ipairs(records) do
    local _, rest = start_of(record.path, starts)
    if rest == "" or filter:reach(rest) then
      local is_match = record.type == "match"
      local count = (counts[record.path] or 0) + (is_match and 1 or 0)
      if is_match and (count > (wanted.max_count or math.huge) or total >= (wanted.max_total or math.huge)) then
        is_cut = true
      elseif total < (wanted.max_total or math.huge) or not is_match then
        counts[record.path], total = count, total + (is_match and 1 or 0)
        kept[#kept + 1] = record
      end
    end
  end
  return kept, is_cut
end

--- Searches. Waits. Raises `invalid` for what is no pattern there, `not_found` for a path that is not there.
---@param driver table
---@param uuid string
---@param wanted bough.contree.grep
---@return table[] records in the order of a walk
---@return { matches: integer, truncated: boolean, files: integer? } numbers
function M.run(driver, uuid, wanted)
  local answer, given = search(driver, uuid, wanted)
  if type(answer.matches) ~= "table" then raise("protocol", "grep", "the service searched and tells of no matches") end
  local starts = {}
  for i, path in ipairs(wanted.paths) do starts[i] = tree.clean(path) end
  local records = {}
  for i, match in ipairs(answer.matches) do
    local record = record_of(type(match) == "table" and match or {})
    for real, path in pairs(given) do
      if record.path == real or record.path:sub(1, #real + 1) == real .. "/" then
        record.path = path .. record.path:sub(#real + 1)
        break
      end
    end
    records[i] = record
  end
  sort(records, starts)
  local is_cut
  records, is_cut = sift(records, wanted, starts)
  local matches = 0
  for _, record in ipairs(records) do
    if record.type == "match" then matches = matches + 1 end
  end
  return records, {
    matches = matches, truncated = is_cut or answer.truncated == true, files = whole(answer.files_searched),
  }
end

return M
