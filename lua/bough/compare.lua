--- What differs between two images, as data and as text.

local M = {}

---@class bough.change
---@field op "added"|"deleted"|"changed"
---@field path string absolute, in the image
---@field kind string as of entries; of what was there where it is deleted
---@field old_kind string? of what was there where it is changed
---@field what string[]? of a change: "content", "mode", "owner", "type", "target", "xattrs", "device"
---@field size integer?
---@field old_size integer?
---@field mode integer? permission bits
---@field old_mode integer?

---@class bough.diff an array of all changes by path
---@field added bough.change[]
---@field changed bough.change[]
---@field deleted bough.change[]
local methods = {}

local letters = { added = "A", deleted = "D", changed = "C" }

local change_meta = {
  __name = "bough.change",
  __tostring = function(self)
    local path = self.path:gsub("%c", function(c)
      return c == "\n" and "\\n" or ("\\%d"):format(c:byte())
    end)
    local what = self.what and #self.what > 0 and (" (%s)"):format(table.concat(self.what, ", ")) or ""
    return ("%s %s%s"):format(letters[self.op], path, what)
  end,
}

--- A line for each change: "A /x", "C /etc/passwd (content, mode)", "D /y".
---@return string
function methods:text()
  local lines = {}
  for i, change in ipairs(self) do lines[i] = tostring(change) .. "\n" end
  return table.concat(lines)
end

local meta = { __name = "bough.diff", __index = methods, __tostring = methods.text }

-- In the order of a walk: a directory, what is below it, its next sibling.
local function sort(records)
  local keys = {}
  for _, record in ipairs(records) do keys[record] = record.path:gsub("/", "\0") end
  table.sort(records, function(a, b) return keys[a] < keys[b] end)
end

--- Makes the object from an engine's records, which become its changes.
---@param records table[]
---@return bough.diff
function M.new(records)
  local diff = { added = {}, changed = {}, deleted = {} }
  sort(records)
  for i, record in ipairs(records) do
    if record.op ~= "changed" then
      record.what = nil
      if record.op == "deleted" then
        record.kind, record.size = record.old_kind or record.kind, record.old_size or record.size
        record.mode = record.old_mode or record.mode
      end
      record.old_kind, record.old_size, record.old_mode = nil, nil, nil
    end
    diff[i] = setmetatable(record, change_meta)
    local group = diff[record.op]
    group[#group + 1] = record
  end
  return setmetatable(diff, meta)
end

return M
