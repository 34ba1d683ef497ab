--- One name in a directory of an image, bound to that image: listing a session and reading an entry
-- later reads what was listed, wherever the session has gone since.

local errors = require "bough.error"

local M = {}

---@class bough.entry
---@field name string last component
---@field full_path string absolute, in the image
---@field kind "file"|"dir"|"symlink"|"fifo"|"socket"|"other"
---@field size integer bytes
---@field mode integer permission bits
---@field mode_string string "0644"; goes back into a file spec as it is
---@field uid integer
---@field gid integer
---@field mtime number seconds since the epoch
---@field nlink integer
---@field symlink_to string?
---@field is_file boolean a regular file
---@field is_dir boolean
---@field is_symlink boolean
---@field is_fifo boolean
---@field is_socket boolean
---@field image bough.image
local methods = {}

--- The whole file. Waits.
---@return string
function methods:read() return self.image:read(self.full_path) end

--- Copies the file out. Waits.
---@param destination string? local path or directory
---@return string path
function methods:download(destination) return self.image:download(self.full_path, destination) end

--- Lists the directory, or a path below it. Waits.
---@param below string?
---@return bough.entry[]
function methods:ls(below)
  return self.image:ls(below and M.join(self.full_path, below) or self.full_path)
end

local meta = {
  __name = "bough.entry",
  __index = methods,
  __tostring = function(self) return self.full_path end,
}

--- Joins a directory of an image and a path below it.
---@param directory string
---@param path string
---@return string
function M.join(directory, path)
  return (directory:gsub("/*$", "")) .. "/" .. (path:gsub("^/+", ""))
end

--- Makes an entry from what an engine lists; `row` becomes the entry.
---@param image bough.image
---@param directory string
---@param row table
---@return bough.entry
function M.new(image, directory, row)
  if type(row) ~= "table" or type(row.name) ~= "string" then
    errors.raise("protocol", "ls", "the engine listed something that is not an entry")
  end
  row.image = image
  row.full_path = M.join(directory, row.name)
  row.mode_string = row.mode and ("%04o"):format(row.mode & 4095) or nil
  row.is_file = row.kind == "file"
  row.is_dir = row.kind == "dir"
  row.is_symlink = row.kind == "symlink"
  row.is_fifo = row.kind == "fifo"
  row.is_socket = row.kind == "socket"
  return setmetatable(row, meta)
end

return M
